"""From a source to tensors: the resolution order, the files it opens, the export they make."""
