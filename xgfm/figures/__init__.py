"""Pictures of maps, of their areas and of what stands behind them.

In: results, cubes and estimates. Out: matplotlib figures, and one piece of HTML. All of these compute.
"""

from xgfm.figures.bars import plot_areas
from xgfm.figures.layout import PANELS
from xgfm.figures.maps import plot, plot_cube
from xgfm.figures.profiles import plot_profiles
from xgfm.figures.swiping import Swipe, swipe
from xgfm.palette import EMPTY

__all__ = ["EMPTY", "PANELS", "Swipe", "plot", "plot_areas", "plot_cube", "plot_profiles", "swipe"]
