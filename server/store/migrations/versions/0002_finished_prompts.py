"""The right to finished Guard prompts"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Existing keys and batches do not get it. New keys do not get it either, unless it is given to them.
    for table in ("api_keys", "batches"):
        op.add_column(table, sa.Column("finished_prompts", sa.Boolean(), nullable=False, server_default=sa.false()))
