"""What ADLRNS costs and what it is worth: a layer's time, patch denoising, and adapters of a diffusion model."""
