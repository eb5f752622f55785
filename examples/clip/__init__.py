"""An image tower of open_clip's shape behind a server: encoded pictures in, unit vectors of 512 numbers out."""
