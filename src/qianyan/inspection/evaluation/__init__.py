"""How often inspections are right, against labels: figures, their intervals, and the page."""
