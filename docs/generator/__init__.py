"""Pages of the site that are made from the code: environments, algorithms, rewards, API and command line.

Each module has `pages()`, which maps the path of a page below `docs/generated` to its Markdown.  Everything comes from the registries, so
that a new row has its page.
"""
