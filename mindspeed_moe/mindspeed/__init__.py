"""At home in MindSpeed: the plugin as a feature of its manager, and what its other features do to the plugin.

Nothing here is imported unless MindSpeed is on the path or somebody asks about it. Lowest first: `arguments` (launch
arguments in any form), `conflict`, `conflicts`, `verdicts` and `groups` (data, and what follows for a launch), `tree`
(what a MindSpeed on the path offers), `managed` (patches through its manager), `attach` (the feature).
"""
