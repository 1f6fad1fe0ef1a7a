"""The run's page: RUN/report.html."""
