"""Image files of the user: which ones are in a folder, and their pixels. No Lightning is needed."""
