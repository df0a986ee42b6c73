"""`align iterate`."""

import click

from align.cli.iterate.loop import WIN_RATE, Goal
from align.cli.iterate.loop import iterate as add_iterations


@click.command()
@click.option("--until", "metric", metavar="METRIC", default=WIN_RATE, show_default=True, help="Column of models.csv.")
@click.option("--max", "limit", metavar="N", type=int, required=True, help="The most iterations to add.")
@click.option("--min-delta", default=0.0, show_default=True, help="How much better than the best so far is better.")
@click.option("--lower-is-better", is_flag=True, help="The metric is to fall.")
def iterate(metric: str, limit: int, min_delta: float, lower_is_better: bool) -> None:
    """Add iterations to the self-rewarding loop one at a time, for as long as METRIC gets better.

    Each is written into params.yaml and reproduced. One that is no better stays; one that fails is taken out again.
    """
    add_iterations(Goal(metric, min_delta, lower_is_better), limit, click.echo)
