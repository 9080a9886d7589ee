"""`python -m worker`."""

from worker.cli import app


def main() -> None:
    app(prog_name="python -m worker")


if __name__ == "__main__":
    main()
