"""The command line and the Ray jobs that run the pipeline's pure functions over many items."""
