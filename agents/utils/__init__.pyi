from .run_folder import RunFolder as RunFolder
from .threads import choose_threads as choose_threads
