"""One study per question; each is run as `isojax NAME`."""
