"""`python -m flawmap`: the same as the command `flawmap`."""

from flawmap.cli.main import main

if __name__ == "__main__":
    main()
