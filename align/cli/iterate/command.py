"""`align iterate`."""

import click

from align.cli.iterate.loop import extend_chain
from align.report.comparisons import MEASURES


@click.command()
@click.option(
    "--until",
    "measure",
    type=click.Choice(list(MEASURES)),
    default="judge",
    show_default=True,
    help="What an iteration must improve: m0's score, the reward where both answers end, or the checks passed.",
)
@click.option("--max", "limit", metavar="N", type=int, required=True, help="The most iterations to add.")
def iterate(measure: str, limit: int) -> None:
    """Add iterations to the self-rewarding loop, one at a time, until one is not better than its parent.

    Half of the held-out conversations decide, by the interval of the paired difference; the other half is reported.
    Each iteration is added to params.yaml and reproduced. The last one stays even if it is no better; one that fails is
    removed.
    """
    extend_chain(measure, limit, click.echo)
