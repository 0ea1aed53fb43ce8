"""`hina-kohya train`: train an adapter with sd-scripts' options on the embedded model, and see what it learnt."""

import sys
import time

from hina_kohya.demo.errors import UserError
from hina_kohya.demo.settings import read_settings


def main(argv: list[str]) -> int:
    start = time.perf_counter()
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
