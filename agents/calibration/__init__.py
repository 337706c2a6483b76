"""What a budget must be planned as, so that episodes keep it at a stated risk."""
