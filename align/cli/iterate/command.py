"""`align iterate`."""

import click

from align.cli.iterate.loop import WIN_RATE, extend_chain


@click.command()
@click.option("--until", "metric", metavar="METRIC", default=WIN_RATE, show_default=True, help="Column of models.csv.")
@click.option("--max", "limit", metavar="N", type=int, required=True, help="The most iterations to add.")
@click.option("--lower-is-better", is_flag=True, help="Lower values of METRIC are better.")
def iterate(metric: str, limit: int, lower_is_better: bool) -> None:
    """Add iterations to the self-rewarding loop, one at a time, until METRIC no longer improves.

    Each is added to params.yaml and reproduced. The last one stays even if it is no better; one that fails is removed.
    """
    extend_chain(metric, limit, lower_is_better, click.echo)
