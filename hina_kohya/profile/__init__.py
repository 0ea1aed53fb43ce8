"""What a step of an optimizer costs, and whose it is: bytes, launches and milliseconds by technique.

``profile`` is the function, `hina-kohya profile` the command, and docs/profile.md the page.
"""

from hina_kohya.profile.profiling import profile
from hina_kohya.profile.rows import Counts, Part, Profile, Row

__all__ = ["Counts", "Part", "Profile", "Row", "profile"]
