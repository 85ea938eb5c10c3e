"""The right to finished Guard prompts"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Keys and batches that were there before do without it, as new keys do unless they are given it.
    for table in ("api_keys", "batches"):
        op.add_column(table, sa.Column("finished_prompts", sa.Boolean(), nullable=False, server_default=sa.false()))
