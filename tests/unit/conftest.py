"""Properties are checked without a time limit: on a busy machine an example may take any time."""

import hypothesis

hypothesis.settings.register_profile("default", deadline=None)
