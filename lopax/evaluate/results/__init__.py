"""Results as data: studies, summaries, leagues, failure maps, archives."""
