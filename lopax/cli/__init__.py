"""The command line. A leaf: nothing else imports it."""
