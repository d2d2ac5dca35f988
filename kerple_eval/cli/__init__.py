"""What each command does, one file each; imported only when it runs."""
