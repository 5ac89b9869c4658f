"""Tables and pictures. Reads records only and never imports torch."""
