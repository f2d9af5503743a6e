"""`python -m glint` is `glint`."""

from glint.cli.app import main

if __name__ == "__main__":
    main()
