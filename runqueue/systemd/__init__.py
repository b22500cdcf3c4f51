"""What runqueue and systemd tell each other, and the files of the services."""
