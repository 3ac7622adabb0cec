"""Shell snippets shared by several launchers."""

NEW_SECRET = "$(od -An -N16 -tx1 /dev/urandom | tr -d ' \\n')"
"""As `tfaccel.cluster.job_secret.new`, without appearing in process lists."""
