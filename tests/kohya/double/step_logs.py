"""What train_network.py logs of the learning rates, since 0.11."""


class StepLogs:
    def generate_step_logs(self, args, current_loss, avr_loss, lr_scheduler, lr_descriptions, optimizer=None):
        """A rate for each group: by its description, or by place."""
        logs = dict(zip(("loss/current", "loss/average"), (current_loss, avr_loss), strict=True))
        rates = lr_scheduler.get_last_lr()
        adaptive = args.optimizer_type.lower().startswith(("dadapt", "prodigy"))
        for i, rate in enumerate(rates):
            name = self.described(args, i, len(rates)) if lr_descriptions is None else lr_descriptions[i]
            logs[f"lr/{name}"] = float(rate)
            if adaptive:
                group = lr_scheduler.optimizers[-1].param_groups[i]
                logs[f"lr/d*lr/{name}"] = group["d"] * group["lr"]
        return logs

    def described(self, args, i, count):
        if i == 0 and not args.network_train_unet_only:
            return "textencoder"
        return f"group{i}" if count > 2 else "unet"
