"""Text that may be shown to anybody, for the layers above: it is written in `schemas`, whose errors need it."""

from cope_prep.schemas.redact import redacted as redacted
from cope_prep.schemas.redact import redacted_document as redacted_document
