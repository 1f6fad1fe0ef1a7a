"""Published families: one file each, with presets and the table that maps parameters to and from Hugging Face names."""
