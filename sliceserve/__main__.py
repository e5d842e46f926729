"""``python -m sliceserve`` is the command line."""

from sliceserve.cli import main

if __name__ == "__main__":
    main()
