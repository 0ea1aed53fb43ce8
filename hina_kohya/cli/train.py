"""`hina-kohya train`: train an adapter with sd-scripts' options on the embedded model, and see what it learnt."""

import sys
import time
from importlib.util import find_spec


def main(argv: list[str]) -> int:
    start = time.perf_counter()
    if find_spec("hina_kohya.demo") is None:  # pyproject.toml leaves it out
        print(
            "hina-kohya train: error: the demo is not in the wheel, it is in a source checkout of hina-kohya: run "
            "`bash scripts/demo.sh` there",
            file=sys.stderr,
        )
        return 2
    from hina_kohya.demo.errors import UserError  # noqa: PLC0415
    from hina_kohya.demo.settings import read_settings  # noqa: PLC0415

    try:
        settings = read_settings(argv)
        from hina_kohya.demo.job import run  # noqa: PLC0415 (torch: only after the settings are known to be good)

        return run(settings, start)
    except UserError as exc:
        print(f"hina-kohya train: error: {exc}", file=sys.stderr)
        return exc.exit_code
    except ModuleNotFoundError as exc:
        if exc.name and exc.name.partition(".")[0] in ("diffusers", "transformers", "sklearn", "rich", "matplotlib"):
            print(f'hina-kohya train: error: {exc.name} is missing; pip install "hina-kohya[train]"', file=sys.stderr)
            return 2
        raise
    except KeyboardInterrupt:
        print("\nhina-kohya train: interrupted; files already announced are whole", file=sys.stderr)
        return 130
