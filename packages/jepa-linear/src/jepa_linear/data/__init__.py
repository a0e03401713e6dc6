"""What can be analysed, and the files it is read from."""
