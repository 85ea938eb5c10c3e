"""The tables. Times are whole seconds since 1970, documents are JSON as text.

A change here needs a migration (migrations/versions/). A test checks that the two agree.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    false,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(40), primary_key=True),
    # The part of a key that is not secret. Keys are looked up by it.
    Column("prefix", String(16), nullable=False, unique=True),
    # HMAC-SHA-256 of the whole key under the server's pepper.
    Column("digest", LargeBinary(32), nullable=False),
    Column("name", String(200), nullable=False),
    # Comma-separated.
    Column("scopes", String(100), nullable=False),
    Column("never_remote", Boolean, nullable=False),
    # Whether finished Guard prompts of the holder choose their own categories and the message to judge.
    Column("finished_prompts", Boolean, nullable=False, server_default=false()),
    Column("requests_per_minute", Integer),
    Column("tokens_per_minute", Integer),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("revoked_at", BigInteger),
)

files = Table(
    "files",
    metadata,
    Column("id", String(40), primary_key=True),
    # The id of the key that the file belongs to, empty on a server without keys.
    Column("owner", String(40), nullable=False, index=True),
    Column("purpose", String(40), nullable=False),
    Column("filename", String(500), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
)

file_chunks = Table(
    "file_chunks",
    metadata,
    Column("file_id", ForeignKey("files.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("content", LargeBinary, nullable=False),
)

batches = Table(
    "batches",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("owner", String(40), nullable=False, index=True),
    # Set from the owner's key or the request when the batch was created: none of it may leave this machine.
    Column("never_remote", Boolean, nullable=False),
    # The right of the owner's key to finished Guard prompts at that time.
    Column("finished_prompts", Boolean, nullable=False, server_default=false()),
    # The id of the model, once its lines are being judged.
    Column("model", String(200)),
    Column("endpoint", String(100), nullable=False),
    Column("completion_window", String(10), nullable=False),
    Column("input_file_id", String(40), nullable=False),
    Column("output_file_id", String(40)),
    Column("error_file_id", String(40)),
    # Seconds after which the output and error files expire; null: never.
    Column("output_expires_after", Integer),
    Column("metadata", Text),
    Column("errors", Text),
    Column("status", String(20), nullable=False, index=True),
    Column("total", Integer, nullable=False, default=0),
    Column("completed", Integer, nullable=False, default=0),
    Column("failed", Integer, nullable=False, default=0),
    # Tokens of the judged lines. The cached ones are part of the input.
    Column("input_tokens", BigInteger, nullable=False, default=0),
    Column("cached_tokens", BigInteger, nullable=False, default=0),
    Column("output_tokens", BigInteger, nullable=False, default=0),
    Column("created_at", BigInteger, nullable=False),
    Column("in_progress_at", BigInteger),
    Column("finalizing_at", BigInteger),
    Column("completed_at", BigInteger),
    Column("failed_at", BigInteger),
    Column("expires_at", BigInteger, nullable=False),
    Column("expired_at", BigInteger),
    Column("cancelling_at", BigInteger),
    Column("cancelled_at", BigInteger),
    # The server that works on it, and the time until which that server counts as alive.
    Column("worker", String(40)),
    Column("worker_until", Float),
    # How many servers died, or lost their engine, while they worked on it.
    Column("falls", Integer, nullable=False, server_default=text("0")),
)

batch_results = Table(
    "batch_results",
    metadata,
    Column("batch_id", ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True),
    # The line of the input file, from 1.
    Column("line", Integer, primary_key=True),
    Column("failed", Boolean, nullable=False),
    # The line of the output or error file.
    Column("document", Text, nullable=False),
)

# Lines that are judged alone, because a server fell while it worked on their batch. A row is written before its line is
# judged, and deleted with the line's result. So a row that a server finds names a line that another one fell at.
batch_suspects = Table(
    "batch_suspects",
    metadata,
    Column("batch_id", ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True),
    Column("line", Integer, primary_key=True),
    # How often it was judged alone.
    Column("tries", Integer, nullable=False),
)

# The audit trail, if it is kept here (server.audit). Nobody but `audit verify` looks into a line.
audit_lines = Table(
    "audit_lines",
    metadata,
    # What the line is part of: records or seals.
    Column("kind", String(10), primary_key=True),
    # The id of the process that wrote it, and the line's number in that process's chain, from 0.
    Column("chain", String(40), primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("line", Text, nullable=False),
)
