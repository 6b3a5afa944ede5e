"""Images that the tests build themselves, layer by layer, out of tars and of what Debian's tools make."""
