"""The console: pages in a browser. Its sources are in `src`, what is served in `static`."""
