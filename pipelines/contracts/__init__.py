"""What an event, a label and everything published look like, and what breaks a rule."""
