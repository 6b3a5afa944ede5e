"""The command line. One noun a file; commands import what is heavy only when they run."""
