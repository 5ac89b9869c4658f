"""`python -m rdi` is `rdi`."""

from rdi.cli import main

if __name__ == "__main__":
    main()
