"""``python -m kerple_eval`` is the ``kerple-eval`` command."""

from kerple_eval.cli.main import main

if __name__ == "__main__":
    main()
