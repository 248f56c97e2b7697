"""`python -m flows.cli` is `unmask`."""

from flows.cli.entry import main

if __name__ == "__main__":
    main()
