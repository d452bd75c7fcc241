"""`python -m cope_prep.jobs run ...`: the same as `cope-prep run ...`, where its script is on no path."""

from cope_prep.jobs.entry import main

if __name__ == "__main__":
    main()
