"""What people read: marked pictures and the report, with their words and fonts."""
