"""What a dataset looks like, in a browser: `cope-prep dashboard` and `cope-prep stats --html`."""
