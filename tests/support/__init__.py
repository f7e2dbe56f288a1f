"""What several test modules share: a real Postfix, the message corpus, CPython's own smtplib tests."""
