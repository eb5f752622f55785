"""Stories: questions that practitioners asked, each answered by one script that measures, with tables and one picture.

    .venv/bin/python -m benches.stories.NAME [-o FOLDER]

prints its tables as Markdown and writes FOLDER/NAME.json, NAME.html and NAME.png (`report.publish`).
"""
