"""`python -m tuner` is `meshtune`."""

from tuner.cli import main

if __name__ == "__main__":
    main()
