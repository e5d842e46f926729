"""/dashboard: one page that shows what /metrics says, live."""

from sliceserve.api.dashboard.readings import Readings
from sliceserve.api.dashboard.routes import add_dashboard_routes

__all__ = ["Readings", "add_dashboard_routes"]
