"""`python -m worker`."""

from worker.cli import app
from worker.terminal import take_any_text


def main() -> None:
    take_any_text()
    app(prog_name="python -m worker")


if __name__ == "__main__":
    main()
