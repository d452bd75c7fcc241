"""One video or one shard in, one out. Pure functions of their inputs; nothing here knows of Ray."""
