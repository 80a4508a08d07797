"""Many workers at once on one PostgreSQL, without their trainings."""
