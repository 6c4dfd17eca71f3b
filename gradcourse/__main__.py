"""`python -m gradcourse`: the command line of `gradcourse.cli`."""

from gradcourse.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
